"""Attacks: how a thief would change or extract a victim. One attack a file."""
