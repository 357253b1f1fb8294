"""What a run says: tables and text."""
