"""The routes of each protocol; a module makes one router."""
