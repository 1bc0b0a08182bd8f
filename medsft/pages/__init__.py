"""Pages that commands write: one look, one file each, no network and no script."""
