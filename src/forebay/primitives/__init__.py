"""Small mechanisms that know nothing of chats. There is no door: import the module."""
