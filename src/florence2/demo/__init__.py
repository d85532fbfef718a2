"""The bundled small Florence-2 that really answers, the pictures it knows, and the script that made both."""
