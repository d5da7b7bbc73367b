"""What each `mvar` command does: plain functions whose arguments are the command's options."""
