"""Speed and detection-quality harnesses, run by hand."""
