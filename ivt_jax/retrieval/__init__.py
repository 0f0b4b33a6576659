"""Find a person: an index over any gallery, queries of several sentences, and why a picture was found."""
