"""The command line beside `serve`: compute files, and show what there is."""
