"""An HTML page that needs nothing else: how it looks, and how what it shows is escaped."""
