"""Reports: findings as text. One format a file; each returns a string, only the command line writes."""
