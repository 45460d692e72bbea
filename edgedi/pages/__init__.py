"""What reports are drawn with: markup, figures, style, the document itself. Pure: values in, text out."""
