"""The process that serves: uvicorn, HTTP/1.1, memory."""
