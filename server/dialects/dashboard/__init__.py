"""The dashboard: `/`, its files, and `/status`, the data it draws."""
