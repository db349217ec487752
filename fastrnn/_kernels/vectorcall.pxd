"""Calls of an object without a tuple and a dict of the arguments: CPython's vectorcall protocol.

Cython fills a class's tp_call, for which CPython makes both. An instance of a class with a
vectorcall function gets the arguments as they lie on the caller's stack. Cython cannot write such a
class, so this is a subclass made by hand, with nothing but CPython's stable ABI.
"""

from cpython.ref cimport PyObject


cdef extern from *:
    """
    #include <structmember.h>
    /* Since 3.8 in CPython, since 3.12 in the headers of the stable ABI. */
    #ifndef Py_TPFLAGS_HAVE_VECTORCALL
    #define Py_TPFLAGS_HAVE_VECTORCALL (1UL << 11)
    #endif
    typedef PyObject *(*fr_vectorcall)(PyObject *, PyObject *const *, size_t, PyObject *);

    /* The highest bit of nargsf says that the caller lends the place before args[0]. */
    static Py_ssize_t fr_count(size_t nargsf) { return (Py_ssize_t)(nargsf & ~(size_t)0 >> 1); }

    /* Returns a subclass that adds no fields. Its instances have their fr_vectorcall at `offset`;
     * tp_call is that of `base` and must do the same. */
    static PyObject *fr_subclass(PyObject *base, const char *name, const char *doc,
                                 Py_ssize_t offset) {
      PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offset, READONLY, NULL},
                               {NULL, 0, 0, 0, NULL}};
      PyType_Slot slots[] = {{Py_tp_members, members},
                             {Py_tp_doc, (void *)doc},
                             {Py_tp_call, PyType_GetSlot((PyTypeObject *)base, Py_tp_call)},
                             {0, NULL}};
      PyType_Spec spec = {name, 0, 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_VECTORCALL,
                          slots};
      PyObject *bases = PyTuple_Pack(1, base), *type = NULL;
      if (bases) type = PyType_FromSpecWithBases(&spec, bases);
      Py_XDECREF(bases);
      return type;
    }

    /* The call by tp_call: for arguments that are rare or wrong. */
    static PyObject *fr_call_by_tuple(PyObject *self, PyObject *const *args, size_t nargsf,
                                      PyObject *names) {
      const Py_ssize_t n = fr_count(nargsf), named = names ? PyTuple_Size(names) : 0;
      ternaryfunc by_tuple = (ternaryfunc)PyType_GetSlot(Py_TYPE(self), Py_tp_call);
      PyObject *result = NULL, *keywords = NULL, *tuple = PyTuple_New(n);
      if (!tuple || (named && !(keywords = PyDict_New()))) goto done;
      for (Py_ssize_t i = 0; i < n; i++) {
        Py_INCREF(args[i]);
        if (PyTuple_SetItem(tuple, i, args[i])) goto done;
      }
      for (Py_ssize_t i = 0; i < named; i++)
        if (PyDict_SetItem(keywords, PyTuple_GetItem(names, i), args[n + i])) goto done;
      result = by_tuple(self, tuple, keywords);
    done:
      Py_XDECREF(tuple);
      Py_XDECREF(keywords);
      return result;
    }
    """
    ctypedef object (*vectorcallfunc "fr_vectorcall")(object, PyObject *const *, size_t, PyObject *)
    Py_ssize_t positional "fr_count"(size_t nargsf)
    object subclass "fr_subclass"(object base, const char *name, const char *doc, Py_ssize_t offset)
    object call_by_tuple "fr_call_by_tuple"(object, PyObject *const *, size_t, PyObject *)
    Py_ssize_t names_count "PyTuple_Size"(PyObject *)
    PyObject *name_at "PyTuple_GetItem"(PyObject *, Py_ssize_t)
