import tseslint from "typescript-eslint";

export default tseslint.config({ ignores: ["node_modules", "dist"] }, ...tseslint.configs.strict, {
  rules: {
    eqeqeq: "error",
    "no-console": "error",
    "@typescript-eslint/no-explicit-any": "error",
    "@typescript-eslint/no-non-null-assertion": "error",
    "@typescript-eslint/consistent-type-imports": "error",
  },
});
