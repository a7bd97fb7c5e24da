"""What people call: parse, call the package, print."""
