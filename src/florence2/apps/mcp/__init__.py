"""`florence2 mcp`: an MCP server over stdio, with tools that caption, detect, read and ground."""
