"""What people and programs get to see of a measurement: a JSON document, tables, one HTML page. Measures nothing."""
