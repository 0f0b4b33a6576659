"""What every room uses: how a command starts and ends, errors, messages, files."""
