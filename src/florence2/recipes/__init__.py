"""The verbs, wired top to bottom: read these first. No logic lives here."""
