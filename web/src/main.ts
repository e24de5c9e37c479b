/** The page: its views, and the element that holds them. */
import "./app.js";
import "./views/index.js";
