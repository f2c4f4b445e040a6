"""hdmnet inside other tools: a module for each, with the extra of its name."""
