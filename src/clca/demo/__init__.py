"""`clca demo`: one small encoder, four ways, on synthetic leaves."""
