"""What people look at: tables, figures, panels, pages."""
