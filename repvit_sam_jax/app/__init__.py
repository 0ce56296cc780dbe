"""`repvit-sam app`: a web page that segments photos by clicks. `page` alone needs the extra `app`."""
