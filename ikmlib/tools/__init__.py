"""What the method can be used for beside the study: enlarging pictures."""
