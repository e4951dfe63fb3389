"""The flow `adapt-student`: a night adapts the student to new documents."""
