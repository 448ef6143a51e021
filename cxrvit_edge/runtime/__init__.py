"""Back ends behind one protocol (session.py), and the choice among them (select.py)."""
