"""Code that every folder uses: how commands start and end, errors, messages, files."""
