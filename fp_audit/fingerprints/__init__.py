"""Methods: what is kept of a victim and how a suspect is compared with it. One method a file."""
