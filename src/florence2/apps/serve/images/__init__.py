"""Images of requests: data URIs, base64 text, uploads and URLs of allowed hosts, decoded away from the event loop."""
