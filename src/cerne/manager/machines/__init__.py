"""What is done to one machine, whether it runs or not: small functions over its context."""
