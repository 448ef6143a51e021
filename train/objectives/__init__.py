"""What each stage minimises: one small file a stage."""
