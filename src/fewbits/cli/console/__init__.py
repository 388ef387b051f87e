"""What people see: outcomes, errors, progress."""
