"""clca"""
