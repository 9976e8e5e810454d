// Starts Swagger UI on /docs. In a file, since the page's Content-Security-Policy forbids inline
// scripts.
window.ui = SwaggerUIBundle({
  url: "openapi.json", // relative to the page: a proxy may add a path before it
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null, // no other host is asked
});
