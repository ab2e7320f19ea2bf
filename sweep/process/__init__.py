"""What every command's process needs first: variables and import path, output, exit code."""
