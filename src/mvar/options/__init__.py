"""What a command takes: options from the arguments of its function, read from words and YAML files."""
