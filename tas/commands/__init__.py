"""One module per command: its function's parameters are the options, its docstring the help."""
