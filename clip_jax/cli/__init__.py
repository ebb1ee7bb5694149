"""What all commands share: flags, exit codes, formatting, progress, caches."""
