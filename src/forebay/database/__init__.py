"""Two databases behind one door: connections, SQL, errors, the standby, migrations."""
