"""Where suspects come from. One source a file; ``fp_audit.plugins`` finds them."""
