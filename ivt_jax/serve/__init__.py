"""The page of an index, and its REST interface: search by sentence and picture, from a browser or a program."""
