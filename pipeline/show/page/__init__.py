"""A page of HTML that stands alone: values, drawings and small images, in sections; it asks for nothing outside it."""
