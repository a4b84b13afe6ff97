"""What a network sees and where it is wrong: pictures, and a page that needs nothing but itself."""
