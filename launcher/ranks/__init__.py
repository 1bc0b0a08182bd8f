"""Ranks as processes: started, heard, seen alive, and gone together. They know nothing of hosts."""
