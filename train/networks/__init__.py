"""Networks that the paper compares with or builds on; none of them is exported."""
