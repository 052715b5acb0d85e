"""The command line: a parser per command, and a thin call of one library function."""
