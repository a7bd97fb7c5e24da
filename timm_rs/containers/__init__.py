"""Files of others, looked into before a library opens them: a file is data, never code, and never more than itself."""
