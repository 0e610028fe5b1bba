"""How one kind of model file is called. One adapter a module; the core finds them through ``fp_audit.plugins``."""
