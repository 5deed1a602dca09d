"""What a change is: tables, cleaning, one row's change, how two meet, how it is encoded."""
