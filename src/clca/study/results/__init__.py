"""What a study has found: its folder, records, table and status."""
